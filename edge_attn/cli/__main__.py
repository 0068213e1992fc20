"""Entry point of `python -m edge_attn.cli`."""

from edge_attn.cli import main

if __name__ == "__main__":  # a worker that multiprocessing spawns imports this file under another name
    main()
