# CUDA image with the pinned requirements.
#     docker build -t dsd-lightning .
#     docker run --gpus all --shm-size 16g -v $PWD/outputs:/app/outputs -v $HOME/.cache/huggingface:/root/.cache/huggingface \
#         dsd-lightning dsd-train experiment=dsd_paper plan=true
# PyTorch's wheels bring CUDA along; the host needs only NVIDIA's driver and container toolkit.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
# Requirements first, so that a change of the code does not install them again; of the extras those of data, reports, the page and 24 GB.
RUN python -c "import configparser; c = configparser.ConfigParser(); c.read('setup.cfg'); extras = c['options.extras_require']; \
        print(c['options']['install_requires'], *(extras[name] for name in ('parquet', 'report', 'ui', 'quantize')))" \
        > /tmp/requirements.txt && pip install --no-cache-dir -c constraints.txt -r /tmp/requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps -e .
CMD ["dsd-train", "--help"]
