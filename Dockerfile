# choreo in a container, as a user without rights. docs/cluster.md says how it runs in a Kubernetes Job.
#
#   docker build -t choreo --build-arg TORCH_INDEX=ADDRESS .
#
# TORCH_INDEX is the package index that has the build of PyTorch that you want: PyTorch publishes one index of builds
# for the CPU and one for each version of CUDA. Without it torch comes from the index that pip uses anyway.
# EXTRAS names the optional parts, as pyproject.toml has them.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH_INDEX=
ARG EXTRAS=serve,data,tensorboard

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/choreo
COPY constraints.txt ./
# torch goes first and alone, so that nothing that depends on it can draw another build of it.
RUN pip install --constraint constraints.txt torch ${TORCH_INDEX:+--index-url ${TORCH_INDEX}}
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --constraint constraints.txt ".[${EXTRAS}]" \
    && useradd --create-home --uid 1000 choreo \
    && install --directory --owner choreo /data

USER 1000
WORKDIR /data
ENTRYPOINT ["choreo"]
CMD ["--help"]
