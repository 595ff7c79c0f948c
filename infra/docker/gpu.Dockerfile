# A function as an HTTP container on an NVIDIA GPU; as cpu.Dockerfile, with the CUDA build of torch.
# To be built in the folder that `zerowake bundle SNAPSHOT --out DIR --gpu` writes. The driver is the
# machine's; CUDA's libraries come with torch.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build
WORKDIR /build
COPY requirements.txt torch.txt *.whl ./
# torch first, with what it needs: which of CUDA's libraries those are is the build's own affair.
RUN python -m venv /opt/zerowake \
    && /opt/zerowake/bin/pip install --no-cache-dir --no-compile -r torch.txt \
    && /opt/zerowake/bin/pip install --no-cache-dir --no-compile --no-deps -r requirements.txt ./*.whl \
    && find /opt/zerowake/lib -type d \( -path '*/torch/include' -o -path '*/torch/share' \) -prune -exec rm -rf {} + \
    && rm -rf /opt/zerowake/lib/python*/site-packages/pip /opt/zerowake/lib/python*/site-packages/pip-*
# A package may bring files that are no Python of this version: they stay as they are.
RUN /opt/zerowake/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/zerowake/lib || true
COPY --chmod=755 bootstrap /opt/zerowake/

FROM python:${PYTHON}-slim
ENV PATH=/opt/zerowake/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_MODULE_LOADING=LAZY \
    XDG_CACHE_HOME=/cache \
    ZEROWAKE_STATE=/tmp/zerowake
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin zerowake \
    && install -d -o 10001 -g 10001 /cache
COPY --from=build /opt/zerowake /opt/zerowake
# With the weights inside (--with-snapshot): COPY snapshot /opt/zerowake/snapshot
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
ENTRYPOINT ["/opt/zerowake/bootstrap"]
CMD ["--device", "cuda"]
