# syntax=docker/dockerfile:1
# docker build --target cpu --build-arg TORCH_INDEX_URL=... -t demur:cpu .   (see docs/deployment.md)
# docker build --target gpu -t demur:gpu .
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS base
ENV PATH=/opt/demur/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1

# --- what is installed, in /opt/demur; nothing of this but that folder reaches an image that runs ---

FROM base AS sources
WORKDIR /src
COPY deploy/install.sh deploy/install.sh
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY decision decision
COPY calibration calibration
COPY server server
COPY clients clients
COPY training training

FROM sources AS install-cpu
# PyTorch's wheel index for CPUs. Empty: the index that pip is configured with, which must then hold a CPU build.
ARG TORCH_INDEX_URL=""
RUN --mount=type=cache,target=/root/.cache/pip deploy/install.sh cpu /opt/demur

FROM sources AS install-gpu
RUN --mount=type=cache,target=/root/.cache/pip deploy/install.sh gpu /opt/demur

# --- what runs ---

FROM base AS runtime
RUN groupadd --gid 10001 demur \
    && useradd --uid 10001 --gid demur --create-home --home-dir /var/lib/demur --shell /usr/sbin/nologin demur \
    && install -d -o demur -g demur /models /tasks
WORKDIR /var/lib/demur
EXPOSE 8000
STOPSIGNAL SIGTERM
# The client reads DEMUR_URL. A probe needs no key.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import sys, demur.clients as c; sys.exit(not c.Client(timeout=4).ready())"]
ENTRYPOINT ["demur", "serve"]
CMD ["--host", "0.0.0.0", "--port", "8000", "--model", "/models/current", "--tasks", "/tasks"]

FROM runtime AS gpu
# Triton compiles its launchers with a C compiler when the engine starts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=install-gpu /opt/demur /opt/demur
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001

# Last, so that a build that names no target makes the image that runs everywhere.
FROM runtime AS cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=install-cpu /opt/demur /opt/demur
USER 10001:10001
