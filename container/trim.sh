#!/bin/sh
# Take out what only builds or tests: trim.sh PREFIX. Bytecode stays: the image may be read-only later.
set -eu
cd "$1"/lib/python3*/site-packages
size() { du -sm "$1" | cut -f1; }
before=$(size .)
# The tests of the libraries. (numpy.testing, torch.testing and the like are not tests; libraries import them. Files *.pyi stay
# too: some libraries read them when they are imported.)
find . -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
# What compiles C++ against torch, and torch's own test programs; torch_shm_manager is needed.
rm -rf torch/include torch/share
find torch/bin -type f ! -name torch_shm_manager -delete
find . -name '*.a' -delete
# What a debugger of JavaScript would read.
find . -name '*.js.map' -delete
echo "trimmed from $before MB to $(size .) MB"
