# The service, on the CPU:
#
#   docker build --build-arg TORCH_INDEX=ADDRESS -t metaformer .
#   docker run -p 8000:8000 -v detectors:/data -e METAFORMER_TOKEN=secret metaformer
#
# ADDRESS is that of the CPU build of PyTorch (200 MB instead of several GB), as pytorch.org shows it
# under "Get started", pip, CPU. Detectors are kept in the volume /data.

FROM python:3.12-slim AS build
ARG TORCH_INDEX
RUN test -n "$TORCH_INDEX" || { echo "Give --build-arg TORCH_INDEX=ADDRESS, see Dockerfile."; exit 1; }
RUN python -m venv /opt/metaformer
ENV PATH=/opt/metaformer/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY constraints.txt ./
RUN pip install --index-url "$TORCH_INDEX" torch -c constraints.txt
COPY pyproject.toml hatch_build.py README.md LICENSE NOTICE ./
COPY src ./src
RUN pip install -c constraints.txt '.[serve]' \
    && python -c "import torch; assert torch.version.cuda is None, 'not the CPU build of PyTorch'"

FROM python:3.12-slim
COPY --from=build /opt/metaformer /opt/metaformer
ENV PATH=/opt/metaformer/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 metaformer && mkdir /data && chown metaformer /data
USER 1000
WORKDIR /home/metaformer
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["metaformer", "serve", "--folder", "/data", "--host", "0.0.0.0", "--port", "8000"]
