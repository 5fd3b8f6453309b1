# bidsharm as a BIDS App. docs/containers.md says how to build and run it, and what each layer is for.
#
#   docker build -t bidsharm:0.1.0 .
#   docker build -t bidsharm:0.1.0-cuda --build-arg TORCH_INDEX=<index of CUDA wheels> .
#
# Build arguments:
#   TORCH_INDEX  package index that torch is taken from; empty: pip's own. PyTorch's pages name one for CPU and one for each CUDA.
#   ANTS_URL     zip archive of an ANTs release for Debian 12 or Ubuntu 22.04; empty, or not reachable: antspyx serves.
#   ANTS_SHA256  its digest; a file with another one ends the build.
FROM docker.io/library/python:3.11-slim-bookworm AS build

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/bidsharm
ENV PATH=/opt/bidsharm/bin:$PATH

# What rarely changes first: torch, then the other libraries, then bidsharm.
COPY constraints.txt /src/
RUN pip install "$(grep '^torch==' /src/constraints.txt)" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY pyproject.toml README.md LICENSE MANIFEST.in /src/
RUN python3 - <<'PY' > /src/requirements.txt
import tomllib
project = tomllib.load(open('/src/pyproject.toml', 'rb'))['project']
print(*project['dependencies'], *project['optional-dependencies']['validate'], sep='\n')
PY
RUN pip install -c /src/constraints.txt -r /src/requirements.txt

COPY bidsharm /src/bidsharm
COPY workflows /src/workflows
RUN pip install --no-deps /src

# The list of what is inside (CycloneDX), made in an environment of its own.
RUN python3 -m venv /opt/sbom \
 && /opt/sbom/bin/pip install cyclonedx-bom \
 && mkdir -p /opt/bidsharm/share/bidsharm \
 && /opt/sbom/bin/cyclonedx-py environment --of JSON -o /opt/bidsharm/share/bidsharm/sbom.json /opt/bidsharm/bin/python3

# Nothing that only builds or tests, and bytecode now: the root file system may be read-only later.
RUN pip uninstall --yes pip setuptools \
 && find /opt/bidsharm -type d \( -name tests -o -name test -o -name __pycache__ \) -path '*site-packages*' -prune -exec rm -rf {} + \
 && find /opt/bidsharm \( -name '*.a' -o -name '*.h' -o -name '*.hpp' \) -delete \
 && python3 -m compileall -q -j 0 /opt/bidsharm/lib || true


FROM docker.io/library/debian:bookworm-slim AS ants
ARG ANTS_URL=""
ARG ANTS_SHA256=""
RUN mkdir -p /opt/ants/bin
RUN if [ -n "$ANTS_URL" ]; then \
      apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates curl unzip \
      && if curl -fsSL --retry 3 -o /tmp/ants.zip "$ANTS_URL"; then \
           echo "$ANTS_SHA256  /tmp/ants.zip" | sha256sum -c - \
           && unzip -q -j /tmp/ants.zip '*/bin/N4BiasFieldCorrection' '*/bin/antsRegistration' '*/bin/antsApplyTransforms' -d /opt/ants/bin; \
         else echo 'ANTs cannot be reached; antspyx serves.'; fi; \
    fi


FROM docker.io/library/python:3.11-slim-bookworm
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="bidsharm" \
      org.opencontainers.image.description="Harmonize brain MRI across scanners, with proof per scan that the anatomy survived" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.bids-app.name="bidsharm" \
      org.bids-app.analysis-levels="participant group"
COPY --from=ants /opt/ants/bin /opt/ants/bin
COPY --from=build /opt/bidsharm /opt/bidsharm

# No home is needed; what insists on a cache finds /tmp, which is the one place that has to be writable.
ENV PATH=/opt/bidsharm/bin:/opt/ants/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache TEMPLATEFLOW_HOME=/tmp/templateflow TEMPLATEFLOW_AUTOUPDATE=0
WORKDIR /tmp
ENTRYPOINT ["bidsharm"]
CMD ["--help"]
