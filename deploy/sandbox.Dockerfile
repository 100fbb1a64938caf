# The image of sandbox containers: an interpreter and the guest program, nothing else.
# Build it from the root of the repository:
#   docker build -f deploy/sandbox.Dockerfile -t sinas-sandbox .
# Approved packages are not in it: they are mounted read-only, so their Python version must be the one of BASE.
ARG BASE=python:3.11-slim
FROM ${BASE}
COPY src/sinas_server/backends/sandbox/guest /opt/sinas/guest
RUN python3 -m compileall -q /opt/sinas && mkdir -p /packages
ENV OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 LANG=C.UTF-8
WORKDIR /
ENTRYPOINT ["python3", "-I", "-S", "-B", "-X", "utf8", "-c", \
    "import sys; sys.path.insert(0, '/opt/sinas'); from guest import container; del sys.path[0]; container.main()"]
