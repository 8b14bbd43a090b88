# The server with its embedded checkpoints. BASE_IMAGE is any Debian-like image with Python 3.11 or newer.
#
#   docker build -t minigpt .
#   docker run -p 8000:8000 -e MINIGPT_API_KEY=secret minigpt
#
# PIP_FLAGS goes to every pip call: an index with CPU-only builds of torch keeps gigabytes of CUDA out of the image.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ARG PIP_FLAGS=""
WORKDIR /app
# The compiler builds the native CPU back end; without it the image would serve, slower, by torch.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /venv
COPY pyproject.toml setup.py README.md ./
COPY model model
COPY server server
COPY training training
COPY loadtest loadtest
RUN /venv/bin/pip install --no-cache-dir ${PIP_FLAGS} --editable .

FROM ${BASE_IMAGE}
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin minigpt
WORKDIR /app
COPY --from=build /venv /venv
COPY --from=build /app /app
COPY checkpoints checkpoints
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER minigpt
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["minigpt-serve", "--host", "0.0.0.0"]
