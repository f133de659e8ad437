"""Texts to vectors: a frozen text encoder, by its name in params.yaml, over titles, tags and the text r of each post.

Reads: data/interim/posts.parquet.
Writes: data/embeddings/text/NAME/ with the blocks `title`, `tags` and `post` (pooled) and the ragged `tokens` of r
(the title; if empty the tags; if both are empty the empty string, which has no tokens).

    python -m popularity.launch stages.embed_text --encoder minilm --posts data/interim/posts.parquet \
        --out data/embeddings/text/minilm --resources reports/resources/embed_text_minilm.json

A killed run resumes at its last finished shard. POPULARITY_TOPOLOGY picks a file of configs/accelerate,
POPULARITY_WORKERS sets the number of loader processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.stage import record_resources, run
from popularity.encoders.text import EmbedTextParams
from popularity.encoders.text_blocks import embed_texts


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--encoder", required=True, help="name in section embed_text")
    parser.add_argument("--posts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resources", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load_params(f"embed_text.{args.encoder}", EmbedTextParams, args.params)
    with record_resources(f"embed_text@{args.encoder}", args.resources):
        embed_texts(args.posts, args.out, params)


if __name__ == "__main__":
    run(main)
