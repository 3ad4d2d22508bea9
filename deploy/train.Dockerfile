# Training on CUDA: the wheels of torch bring CUDA's libraries, the host brings the driver and NVIDIA's container toolkit.
#
#     docker build --file deploy/train.Dockerfile --tag vitrieve-train .
#     docker run --gpus all --ipc host --volume "$PWD:/data" vitrieve-train \
#         train small --data folder:/data/photographs --out /data/runs/mine --resume
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm
# The pair that the tests run with; another one is given with --build-arg.
ARG TORCH=2.14.1
ARG TORCHVISION=0.29.1
# torch.compile, which training uses on CUDA, builds its launchers with a C compiler.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends gcc libc6-dev && \
    rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --disable-pip-version-check "torch==${TORCH}" "torchvision==${TORCHVISION}"
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
# Versions are those that pyproject.toml allows, and torch is chosen above.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --disable-pip-version-check ".[train]"
RUN groupadd --gid 10001 vitrieve && \
    useradd --uid 10001 --gid 10001 --create-home --home-dir /data vitrieve
ENV VITRIEVE_CACHE=/data/.cache/vitrieve \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["vitrieve"]
CMD ["doctor"]
