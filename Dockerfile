# docker build -t semopo_tf .
# docker run --rm --gpus all semopo_tf                               # what this machine can do
# docker run --rm --gpus all -v "$PWD/data:/data" -v "$PWD/runs:/runs" --user "$(id -u):$(id -g)" semopo_tf \
#   train.py --configs semopo walker_walk --offline_dir /data/walker --logdir /runs/walker
#
# The CUDA libraries come from pip with TensorFlow, so the host needs only NVIDIA's driver and container toolkit.
FROM python:3.11-slim-bookworm

# EGL for the GPU and for Mesa, and OSMesa where EGL does not work. semopo_tf finds out which one renders.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*
# Tells EGL's dispatcher about the driver library that the container toolkit mounts. Not every toolkit brings this file.
RUN mkdir -p /usr/share/glvnd/egl_vendor.d \
    && echo '{"file_format_version": "1.0.0", "ICD": {"library_path": "libEGL_nvidia.so.0"}}' > /usr/share/glvnd/egl_vendor.d/10_nvidia.json
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics

# The packages before the sources, so that a change of the code installs nothing again.
WORKDIR /app
COPY setup.py pyproject.toml constraints.txt ./
COPY semopo_tf/__init__.py semopo_tf/
RUN pip install --no-cache-dir --constraint constraints.txt setuptools \
    && pip install --no-cache-dir --constraint constraints.txt --no-build-isolation --editable '.[gpu]'
COPY . .

# Anybody may write to the volumes and the home directory: `--user` gives the files their owner outside.
RUN useradd --uid 1000 --create-home semopo \
    && mkdir -p /data /runs \
    && chown semopo:semopo /data /runs \
    && chmod 1777 /data /runs /home/semopo
ENV HOME=/home/semopo PYTHONUNBUFFERED=1
USER semopo
VOLUME ["/data", "/runs"]

# `train.py ...` and `evaluate.py ...` are run by Python, everything else as it stands: `python -m semopo_tf.collect ...`, `bash`.
ENTRYPOINT ["/bin/sh", "-c", "case \"$1\" in *.py) exec python \"$@\" ;; *) exec \"$@\" ;; esac", "semopo_tf"]
CMD ["python", "-m", "semopo_tf.doctor"]
