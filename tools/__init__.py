"""What people run beside the pipeline."""

import subprocess

from genprior.files import InputError


def output(*command: str) -> subprocess.CompletedProcess:
    """What a command leaves; InputError with its first line where it fails."""
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"{' '.join(command[-5:])}: {said[0].removeprefix('ERROR: ')}")
    return done
