"""Configuration of JupyterLab (`make lab`): notebooks open unmodified, and are saved as nbdev_clean has them.

Once its kernel runs, JupyterLab writes into a notebook which kernel and which Python that is. The notebooks
of this repository do not say so: the Python's version differs between machines, and every notebook would be
modified as soon as it is opened. So it is added when a notebook is read, and taken out when it is written.
"""

from copy import deepcopy

from ipykernel.ipkernel import IPythonKernel
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager


def display_name(kernel: str) -> str:
    "What an installed kernel is called; its own name where there is none."
    try:
        return KernelSpecManager().get_kernel_spec(kernel).display_name
    except NoSuchKernel:
        return kernel


class CleanNotebooks(AsyncLargeFileManager):
    "Files as ever, but notebooks on the disk know nothing of the machine."

    async def get(self, *where, **options) -> dict:
        "A file or folder; a notebook with its kernel and language."
        model = await super().get(*where, **options)
        if model["type"] == "notebook" and model["content"]:
            metadata = model["content"]["metadata"]
            kernel = metadata.get("kernelspec", {})
            if kernel.get("name") == "python3":
                kernel["display_name"] = display_name("python3")
                metadata["language_info"] = dict(IPythonKernel.language_info)
        return model

    async def save(self, model: dict, path: str = "") -> dict:
        "Write a file; a notebook without them."
        if model["type"] == "notebook" and model.get("content"):
            model = deepcopy(model)
            metadata = model["content"]["metadata"]
            metadata.pop("language_info", None)
            kernel = metadata.get("kernelspec", {})
            if "name" in kernel:
                kernel["display_name"] = kernel["name"]
        return await super().save(model, path)


if "get_config" in globals():  # read by JupyterLab
    get_config().ServerApp.contents_manager_class = CleanNotebooks  # noqa: F821
