"""Downloads published CSV data sets from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from engine.io import UsageError


def download_csv(repository: str) -> Path:
    """Fetch train.csv and test.csv of a Hub data set; returns their folder. Raises: UsageError if that fails."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UsageError(
            "--download needs the huggingface_hub library (pip install 'loopforge[hub]'); "
            "or fetch train.csv and test.csv yourself and pass their folder as --input"
        ) from None
    try:
        files = [hf_hub_download(repository, f"{name}.csv", repo_type="dataset") for name in ("train", "test")]
    except Exception as error:  # any failure of the library is reported by its first line
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--download from {repository} failed: {first}; pass the files' folder as --input") from None
    return Path(files[0]).parent
