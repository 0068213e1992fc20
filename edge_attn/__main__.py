"""Entry point of `python -m edge_attn`."""

from edge_attn.cli import main

main()
