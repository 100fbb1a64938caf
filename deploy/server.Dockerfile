# The image of the platform: every role (api, workers, scheduler) is a command of it.
# Build it from the root of the repository:
#   docker build -f deploy/server.Dockerfile -t sinas-server .
# Where packages come from is configured as pip reads it, for the build only:
#   --build-arg PIP_INDEX_URL=... --build-arg PIP_CERT=...
ARG BASE=python:3.11-slim

FROM ${BASE} AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python3 -m venv /build/tools && /build/tools/bin/pip install -q uv && python3 -m venv /opt/sinas
COPY pyproject.toml uv.lock ./
RUN /build/tools/bin/uv export -q --frozen --offline --no-dev --no-emit-project --output-file requirements.txt \
    && /opt/sinas/bin/pip install -q --require-hashes -r requirements.txt

FROM dependencies AS build
COPY README.md LICENSE ./
COPY migrations migrations
COPY src src
RUN /build/tools/bin/pip wheel -q --no-deps --wheel-dir dist .

FROM ${BASE}
# A layer of their own: another version of the platform is a few megabytes to build, push and pull.
COPY --from=dependencies /opt/sinas /opt/sinas
COPY --from=build /build/dist /tmp/dist
RUN /opt/sinas/bin/pip install -q --no-cache-dir --no-deps /tmp/dist/*.whl
RUN useradd --system --uid 10001 --home-dir /var/lib/sinas --create-home sinas
ENV PATH=/opt/sinas/bin:$PATH SINAS_MODE=clustered SINAS_DATA_DIR=/var/lib/sinas PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /var/lib/sinas
VOLUME /var/lib/sinas
EXPOSE 8000
ENTRYPOINT ["sinas"]
CMD ["api"]
