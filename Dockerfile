# bidsharm as a BIDS App. docs/containers.md says how to build and run it, and what each layer is for.
#
#   docker build -t bidsharm:0.1.0 --build-arg TORCH_INDEX=INDEX_OF_CPU_WHEELS .
#   docker build -t bidsharm:0.1.0-cuda --build-arg DEVICE=cuda .
#
# Build arguments:
#   BASE         image with Python 3.11 on Debian 12; give it with its digest to pin that too.
#   DEVICE       cpu or cuda: which torch must come out; another one ends the build.
#   TORCH_INDEX  package index that torch is taken from; empty: pip's own, which has the CUDA build. PyTorch's pages name the others.
#   ANTS_URL     zip archive of an ANTs release for Debian 12 or Ubuntu 22.04; empty, or not reachable: antspyx serves.
#   ANTS_SHA256  its digest; a file with another one ends the build.
#   TEMPLATES    names of TemplateFlow templates (res-1 and res-2) to put inside; one that cannot be reached ends the build.
#   VERSION, REVISION  for the labels.
#
# Every stage has the label org.bids-app.name: what old builds leave is found by it (docs/containers.md).
ARG BASE=docker.io/library/python:3.11-slim-bookworm


FROM ${BASE} AS ants
LABEL org.bids-app.name="bidsharm"
ARG ANTS_URL=""
ARG ANTS_SHA256=""
COPY container/fetch_ants.py /src/
RUN python3 /src/fetch_ants.py "$ANTS_URL" "$ANTS_SHA256" /opt/ants/bin


# What has to be installed, in a stage of its own: other changes of pyproject.toml leave the libraries alone.
FROM ${BASE} AS requirements
LABEL org.bids-app.name="bidsharm"
COPY pyproject.toml /src/
RUN python3 -c "import tomllib; p = tomllib.load(open('/src/pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['validate'], sep='\n')" > /src/requirements.txt


FROM ${BASE} AS libraries
LABEL org.bids-app.name="bidsharm"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_USE_PEP517=1
# The pip of the base installs into the environment; so none has to be inside.
RUN python3 -m venv --without-pip /opt/bidsharm

# Torch first, the largest and the one that rarely changes. All versions are in these two files.
COPY constraints.txt container/lock.txt /src/
ENV PIP_CONSTRAINT="/src/constraints.txt /src/lock.txt"
ARG DEVICE=cpu
ARG TORCH_INDEX=""
RUN python3 -m pip --python /opt/bidsharm install "$(grep '^torch==' /src/constraints.txt)" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
 && /opt/bidsharm/bin/python3 -c "import sys, torch; found = 'cuda' if torch.version.cuda else 'cpu'; found == '$DEVICE' or sys.exit('This index has torch for ' + found + ', not for $DEVICE: give TORCH_INDEX.')"
COPY --from=requirements /src/requirements.txt /src/
COPY container/trim.sh /src/
RUN python3 -m pip --python /opt/bidsharm install -r /src/requirements.txt \
 && python3 -m pip --python /opt/bidsharm check \
 && sh /src/trim.sh /opt/bidsharm

ARG TEMPLATES=""
RUN mkdir -p /opt/templateflow \
 && for name in $TEMPLATES; do TEMPLATEFLOW_HOME=/opt/templateflow /opt/bidsharm/bin/python3 -c "from templateflow.api import get; print(get('$name', resolution=[1, 2], suffix=['T1w', 'mask']))" || exit 1; done

# The list of the libraries (CycloneDX), by a tool in an environment of its own.
RUN python3 -m venv /opt/sbom \
 && /opt/sbom/bin/pip install cyclonedx-bom==7.5.0 \
 && /opt/sbom/bin/cyclonedx-py environment --of JSON -o /src/sbom.json /opt/bidsharm/bin/python3


# bidsharm on its own: a new version changes this small part only.
FROM libraries AS app
ARG VERSION=0.1.0
COPY pyproject.toml README.md LICENSE MANIFEST.in /src/
COPY bidsharm /src/bidsharm
COPY workflows /src/workflows
RUN python3 -m pip --python /opt/bidsharm install --no-deps --root /app /src
COPY --from=ants /opt/ants /opt/ants
COPY container/sbom.py /src/
RUN /opt/sbom/bin/python /src/sbom.py /src/sbom.json /opt/bidsharm "$VERSION" /app/opt/bidsharm/share/bidsharm/sbom.json


FROM ${BASE}
COPY --from=ants /opt/ants /opt/ants
COPY --from=libraries /opt/templateflow /opt/templateflow
COPY --from=libraries /opt/bidsharm /opt/bidsharm
COPY --from=app /app/opt/bidsharm /opt/bidsharm

# USER is a name for libraries that ask for one, because a uid from outside has none. HOME is not set: bidsharm makes one
# below TMPDIR where there is none.
ARG VERSION=0.1.0
ARG REVISION=""
ENV PATH=/opt/bidsharm/bin:/opt/ants/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 USER=bidsharm PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 \
    TEMPLATEFLOW_HOME=/opt/templateflow TEMPLATEFLOW_AUTOUPDATE=0 BIDSHARM_CONTAINER=docker:bidsharm:${VERSION}
LABEL org.opencontainers.image.title="bidsharm" \
      org.opencontainers.image.description="Harmonize brain MRI across scanners, with proof per scan that the anatomy survived" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.bids-app.name="bidsharm" \
      org.bids-app.version="$VERSION" \
      org.bids-app.analysis-levels="participant group"
WORKDIR /tmp
ENTRYPOINT ["bidsharm"]
CMD ["--help"]
