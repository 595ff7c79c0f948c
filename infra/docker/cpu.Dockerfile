# A function as an HTTP container on processors: Cloud Run, Kubernetes, Azure, SageMaker, Vertex, ...
# To be built in the folder that `zerowake bundle SNAPSHOT --out DIR` writes. The weights stay outside:
# ZEROWAKE_SNAPSHOT says where they are, an s3:// URL or a folder that is mounted.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build
WORKDIR /build
COPY requirements.txt *.whl ./
# The requirements are all there is, pinned; without --no-deps pip would add what others need.
# Headers and symbols for linkers are for building extensions. Bytecode that is never compared with its
# source spares every import a look at the disk.
RUN python -m venv /opt/zerowake \
    && /opt/zerowake/bin/pip install --no-cache-dir --no-compile --no-deps -r requirements.txt ./*.whl \
    && find /opt/zerowake/lib -type d \( -path '*/torch/include' -o -path '*/torch/share' \) -prune -exec rm -rf {} + \
    && rm -rf /opt/zerowake/lib/python*/site-packages/pip /opt/zerowake/lib/python*/site-packages/pip-*
# A torch-free form uses torch's libraries and none of its Python: 300 MB less.
ARG PYTHON
ARG LIBTORCH_ONLY=
RUN if [ -n "${LIBTORCH_ONLY}" ]; then \
        find /opt/zerowake/lib/python*/site-packages/torch -mindepth 1 -maxdepth 1 \
            ! -name lib ! -name version.py -exec rm -rf {} + ; \
        echo "raise ImportError('the image has only the libraries of torch: zerowake bundle --eager')" \
            > "/opt/zerowake/lib/python${PYTHON}/site-packages/torch/__init__.py" ; \
    fi
# A package may bring files that are no Python of this version: they stay as they are.
RUN /opt/zerowake/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/zerowake/lib || true
COPY --chmod=755 bootstrap /opt/zerowake/

FROM python:${PYTHON}-slim
# PYTHONDONTWRITEBYTECODE: what could be compiled is. /cache: snapshots out of stores, verified once.
ENV PATH=/opt/zerowake/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
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
