"""Install digit69. What describes the package stands in settings.ini; this file hands it to setuptools."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ini = ConfigParser(delimiters=["="])
ini.read("settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    keywords=cfg["keywords"].split(),
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=f">={cfg['min_python']}",
    # The report notebooks and their template live in nbs/reports, shipped as the package digit69.reports.
    packages=[*find_packages(include=["digit69", "digit69.*"]), "digit69.reports"],
    package_dir={"digit69.reports": "nbs/reports"},
    package_data={
        "digit69": ["resources/*"],
        "digit69.reports": ["*.ipynb", "template/*/*"],
    },
    install_requires=cfg["requirements"].split(),
    extras_require={
        "dev": cfg["dev_requirements"].split(),
        "clip": cfg["clip_requirements"].split(),
        "explore": cfg["explore_requirements"].split(),
        "nifti": cfg["nifti_requirements"].split(),
        "bdpy": cfg["bdpy_requirements"].split(),
    },
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
