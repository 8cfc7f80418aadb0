# syntax=docker/dockerfile:1
#
#     docker build -t loopforge .
#     docker build -t loopforge:cuda --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#     docker run --rm loopforge                                   # what it has: scripts/doctor.py
#
# More in docs/containers.md. Any base of Debian or Ubuntu with Python 3.11 or newer will do: torch brings CUDA along.
ARG BASE=debian:trixie-slim
FROM ${BASE}

# A compiler and Python's headers for torch.compile; git for the commit that a run records; make for the set-up.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu has a user of this number already. Whoever mounts folders gives the build their own: --build-arg UID=$(id -u)
ARG UID=1000
RUN useradd --no-log-init --create-home --non-unique --uid "${UID}" loopforge \
    && install -d -o loopforge /loopforge
USER loopforge
WORKDIR /loopforge

# What the Makefile installs, and where: in the home, which a devcontainer gives to the user of the host. Another index
# than pip's own comes in as pip's own variables.
ARG EXTRAS=dev
ENV EXTRAS=${EXTRAS} \
    VENV=/home/loopforge/venv \
    PATH=/home/loopforge/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
ARG PIP_NO_CACHE_DIR=1
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

# torch and what else the project depends on, in a layer that stays while only code changes.
COPY --chown=loopforge constraints.txt pyproject.toml ./
RUN python3 -m venv "${VENV}" \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /tmp/dependencies.txt \
    && python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r /tmp/dependencies.txt

COPY --chown=loopforge . .
RUN make setup

CMD ["python", "scripts/doctor.py"]
