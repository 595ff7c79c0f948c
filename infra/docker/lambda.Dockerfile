# A function as an AWS Lambda image, on demand or on managed instances: its bootstrap is ours, which
# speaks the Runtime API itself. To be built in the folder that `zerowake bundle --platform lambda`
# writes, with `docker build --provenance=false`: Lambda takes no image index.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build
WORKDIR /build
COPY requirements.txt *.whl ./
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
# Only /tmp can be written there, by a user of Lambda's own choice.
ENV PATH=/opt/zerowake/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    ZEROWAKE_STATE=/tmp/zerowake
COPY --from=build /opt/zerowake /opt/zerowake
RUN install -d /var/runtime && ln -s /opt/zerowake/bootstrap /var/runtime/bootstrap
# With the weights inside (--with-snapshot): COPY snapshot /opt/zerowake/snapshot
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["/var/runtime/bootstrap"]
