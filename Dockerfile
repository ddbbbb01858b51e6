# The image of jobs on TPUs, and of stages that need none:
#
#   docker build --target=main --tag=IMAGE .
#
# For Dataflow, whose workers and the job that starts them need Beam as well:
#
#   docker build --target=beam --tag=IMAGE .
#
# It holds configs/: build it again when a config has changed. That takes
# seconds, as long as pyproject.toml and constraints.txt are the same.
FROM python:3.11-slim-bookworm AS main

WORKDIR /infoprune_jax
COPY pyproject.toml constraints.txt ./
# The dependencies alone, so that a change of the code does not install them.
RUN mkdir infoprune_jax && touch README.md LICENSE infoprune_jax/__init__.py && \
    pip install --no-cache-dir --constraint constraints.txt \
    --editable '.[gcs,hf]' 'jax[tpu]'
COPY README.md LICENSE ./
COPY infoprune_jax infoprune_jax
COPY configs configs
ENTRYPOINT ["python", "-m", "infoprune_jax.main"]

FROM main AS beam
RUN pip install --no-cache-dir --constraint constraints.txt 'apache-beam[gcp]'
# The version of Beam in constraints.txt.
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]
