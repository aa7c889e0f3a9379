# The study as an image, for those who rent by image. Results and the hub's cache are volumes:
#   docker build -t peft-or-full .
#   docker run --rm --gpus all -e HF_TOKEN -v study-results:/results -v study-cache:/cache \
#     peft-or-full make reproduce PROFILE=gpu YES=1
# CUDA 13.0 as torch's own packages have it. Drivers from 580 on; older ones (535 on, data-centre
# cards) work through the compatibility package that this image brings.
FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04

# gcc and Python's headers: Triton builds kernels when they are first used.
# Versions of Ubuntu's packages leave its archive when the next ones come, so they are not pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
       gcc libc6-dev make python3.12 python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

RUN userdel --remove ubuntu \
    && useradd --create-home --uid 1000 study \
    && python3.12 -m venv /opt/venv \
    && mkdir -p /study/studylib /results /cache \
    && chown -R study:study /study /opt/venv /results /cache
USER 1000
WORKDIR /study
ENV PATH=/opt/venv/bin:$PATH \
    HF_HOME=/cache/huggingface \
    RESULTS=/results \
    PYTHONUNBUFFERED=1

# The packages before the code, so that a change of code does not fetch them again.
COPY --chown=study:study pyproject.toml constraints.txt lock.txt README.md ./
COPY --chown=study:study tools/install tools/install
RUN touch studylib/__init__.py \
    && PIP_NO_CACHE_DIR=1 tools/install python .
COPY --chown=study:study . .

VOLUME ["/results", "/cache"]
# As Ctrl-C: what runs is asked to stop, and goes on from its checkpoint next time.
STOPSIGNAL SIGINT
CMD ["make", "reproduce"]
