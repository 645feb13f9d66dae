"""`python -m orchestrator` is `convoy`."""

from orchestrator.cli.main import main

if __name__ == "__main__":
    main()
