# The image of every node: cluster.yaml, clusters/*.yaml and kubernetes/*.yaml name it ray-sr:0.1.0.
#
#   docker build -t ray-sr:0.1.0 .
#   docker build -t ray-sr:0.1.0 --build-arg AUTOSCALER="google-api-python-client==2.190.0 cryptography" .   (Google)
#
# torch's wheels bring CUDA along; the hosts bring the driver. Python and Ray are those of the laptop, or `ray-sr
# submit` from a checkout would send code to a cluster that reads it otherwise.
FROM python:3.11-slim-bookworm

# bash, rsync and ssh are what `ray up` works with inside a container, wget what KubeRay's probes call.
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash ca-certificates openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 --shell /bin/bash ray
WORKDIR /home/ray/ray-sr
# NVIDIA's container toolkit gives a container the GPUs and the parts of the driver that it asks for here.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV PATH=/opt/ray-sr/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

COPY requirements.lock ./
RUN python -m venv /opt/ray-sr \
    && pip install --no-deps --require-hashes -r requirements.lock

# What Ray's autoscaler calls the cloud with; nothing on Kubernetes and on machines by address.
ARG AUTOSCALER="boto3==1.43.11"
RUN if [ -n "$AUTOSCALER" ]; then pip install $AUTOSCALER; fi

COPY pyproject.toml README.md LICENSE ./
COPY ray_sr ./ray_sr
RUN pip install --no-deps --no-build-isolation . && rm -rf /home/ray/ray-sr/* && ray-sr --version

USER ray
RUN mkdir -p /home/ray/.ray
CMD ["bash"]
