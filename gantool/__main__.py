"""`gantool` and `python -m gantool`."""

import signal


def main() -> None:
    """The program; Ctrl-C while it is being loaded ends it without a traceback."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if raises:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gantool.cli import main as program

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    program()


if __name__ == "__main__":
    main()
