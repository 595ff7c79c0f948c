# A function as an image for Lambda's managed instances with a GPU: as lambda.Dockerfile, with the CUDA
# build of torch. To be built in the folder that `zerowake bundle --platform lambda --gpu` writes, with
# `docker build --provenance=false`: Lambda takes no image index.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build
WORKDIR /build
COPY requirements.txt torch.txt *.whl ./
RUN python -m venv /opt/zerowake \
    && /opt/zerowake/bin/pip install --no-cache-dir --no-compile -r torch.txt \
    && /opt/zerowake/bin/pip install --no-cache-dir --no-compile --no-deps -r requirements.txt ./*.whl \
    && find /opt/zerowake/lib -type d \( -path '*/torch/include' -o -path '*/torch/share' \) -prune -exec rm -rf {} + \
    && rm -rf /opt/zerowake/lib/python*/site-packages/pip /opt/zerowake/lib/python*/site-packages/pip-*
# A package may bring files that are no Python of this version: they stay as they are.
RUN /opt/zerowake/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/zerowake/lib || true
COPY --chmod=755 bootstrap /opt/zerowake/

FROM python:${PYTHON}-slim
# Only /tmp can be written there, by a user of Lambda's own choice.
ENV PATH=/opt/zerowake/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_MODULE_LOADING=LAZY \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    ZEROWAKE_STATE=/tmp/zerowake
COPY --from=build /opt/zerowake /opt/zerowake
RUN install -d /var/runtime && ln -s /opt/zerowake/bootstrap /var/runtime/bootstrap
# With the weights inside (--with-snapshot): COPY snapshot /opt/zerowake/snapshot
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["/var/runtime/bootstrap"]
CMD ["--device", "cuda"]
