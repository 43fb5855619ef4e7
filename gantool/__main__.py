"""`gantool` and `python -m gantool`."""

import signal


def main() -> None:
    """The program; Ctrl-C while it is being loaded ends it without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gantool.cli import main as program

    signal.signal(signal.SIGINT, handler)
    program()


if __name__ == "__main__":
    main()
