"""Entry point of `python -m edge_attn.cli`."""

from edge_attn.cli import main

main()
