"""What to say about an import of something that is not installed."""

import importlib.util
import sys

OTHER_NAMES = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "Crypto": "pycryptodome",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "jwt": "pyjwt",
    "PIL": "pillow",
    "pptx": "python-pptx",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Modules whose package is called otherwise, where people often stumble."""


def advice(error: BaseException) -> str:
    """How to have the missing package approved; empty for any other error."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    module = error.name.partition(".")[0]
    if module in sys.stdlib_module_names or _is_there(module):
        return ""
    package = OTHER_NAMES.get(module, module.replace("_", "-"))
    return (
        f"; functions do not have the package '{package}': an administrator can approve it with "
        f'POST /api/v1/dependencies {{"package_name": "{package}"}}, or see with GET what became of it'
    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a module that broke while it was loaded
        return True
