"""Published CSV data sets of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from engine.io import UsageError


def download_csv(repository: str) -> Path:
    """The folder with train.csv and test.csv of a Hub data set. Raises: UsageError when they cannot be fetched."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UsageError(
            "--download needs the huggingface_hub library (pip install 'loopforge[hub]'); "
            "or fetch train.csv and test.csv yourself and pass their folder as --input"
        ) from None
    try:
        files = [hf_hub_download(repository, f"{name}.csv", repo_type="dataset") for name in ("train", "test")]
    except Exception as error:  # every failure of the library ends here, with its first line
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--download from {repository} failed: {first}; pass the files' folder as --input") from None
    return Path(files[0]).parent
