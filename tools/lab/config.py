"""What `make lab` starts: JupyterLab on this checkout, with the notebooks' start page open.

Settings of the page and open tabs are kept in .jupyter/, which git ignores: the user's own ones are
neither read nor written. Access stays as Jupyter has it: by a token, which the address that it
prints and opens carries.

Not covered: what the start page says (notebooks/README.md).
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

c = get_config()  # noqa: F821 - Jupyter's loader puts it here
c.ServerApp.ip = "127.0.0.1"
c.ServerApp.root_dir = str(ROOT)
c.ServerApp.allow_root = True  # rented machines have no other user
c.LabApp.default_url = "/lab/tree/notebooks/README.md"
c.LabApp.app_settings_dir = str(HERE)
c.LabApp.user_settings_dir = str(ROOT / ".jupyter/settings")
c.LabApp.workspaces_dir = str(ROOT / ".jupyter/workspaces")
c.LabApp.news_url = None  # asks no server elsewhere
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"  # what PyPI offers is not asked
