"""The program `tollkeeper`: a client of the admin services, and the way to start the other programs."""


def main() -> None:
    """Run the command line and end the process with its exit code: 0 done, 1 refused or failed, 2 wrong usage."""
    # Imported here, so that a module of this package can be used without building every command.
    from controlplane.cli.app import app

    app(prog_name="tollkeeper")
