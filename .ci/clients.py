"""JupyterLab in headless Chromium, nbclient, papermill and jupyter console run a notebook with the kernel "lacuna" of
this Python's prefix; what the browser shows is left in ARTIFACTS.

    python .ci/clients.py NOTEBOOK ARTIFACTS
"""

import base64
import contextlib
import json
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import nbformat
import websocket

BIN = pathlib.Path(sys.executable).parent
STEP_SECONDS = 240


def step(text):
    print(f"clients: {text} ({time.monotonic() - STARTED:.0f} s)", flush=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, test, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, ValueError):
            if result := test():
                return result
        if time.monotonic() > deadline:
            raise SystemExit(f"clients: {what}: not within {seconds} s")
        time.sleep(0.25)


def get(url):
    return json.load(urllib.request.urlopen(url, timeout=10))


@contextlib.contextmanager
def process(arguments, log, **options):
    """A program that is ended with the block; its output goes to a file."""
    with open(log, "wb") as output:
        child = subprocess.Popen(arguments, stdout=output, stderr=output, stdin=subprocess.DEVNULL, **options)
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()


class Page:
    """A tab of the browser, through its DevTools protocol."""

    def __init__(self, port):
        tabs = wait_for("Chromium", lambda: [t for t in get(f"http://127.0.0.1:{port}/json") if t["type"] == "page"])
        self.socket = websocket.create_connection(tabs[0]["webSocketDebuggerUrl"], suppress_origin=True, timeout=60)
        self.count = 0

    def send(self, method, **parameters):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.count:
                if "error" in message:
                    raise SystemExit(f"clients: {method}: {message['error']}")
                return message["result"]

    def value(self, expression):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise SystemExit(f"clients: in the page: {result['exceptionDetails']}")
        return result["result"].get("value")

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


# Shown by the kernel's pictures and tables; SVG and PNG outputs are images of some size.
TABLES = "[...document.querySelectorAll('.jp-OutputArea-output table')].filter(t => t.rows.length > 1).length"
PLOTS = """[...document.querySelectorAll('.jp-OutputArea-output img, .jp-OutputArea-output svg')]
    .filter(p => p.getBoundingClientRect().width > 100 && (p.tagName != 'IMG' || p.naturalWidth > 100)).length"""
# The notebook's tab, and the kernel that it is connected to.
PANEL = "[...(window.jupyterapp?.shell.widgets('main') ?? [])].find(w => w.context?.path.endsWith('.ipynb'))"
KERNEL = f"{PANEL}?.context.sessionContext.session?.kernel"
# In the page they look like text on the standard error.
ERRORS = f"{PANEL}.content.model.toJSON().cells.flatMap(cell => cell.outputs ?? []).filter(output => output.output_type == 'error').length"
# JupyterLab writes [*] before a cell that runs or waits, and [1] before one that has run.
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"


def browser(notebook, artifacts):
    with contextlib.ExitStack() as stack:
        home = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        # The notebook's paths are relative to it, so it is opened in its place, in a copy of the tree around it.
        root = home / "work"
        shutil.copytree(notebook.parent.parent / "data", root / "data")
        (root / "notebooks").mkdir()
        shutil.copy(notebook, root / "notebooks")
        cells = nbformat.read(notebook, 4).cells
        code = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells)
        port, debug, token = free_port(), free_port(), secrets.token_hex(16)
        # Outputs that are out of sight are rendered too, so that the test can look at them.
        settings = home / "settings" / "@jupyterlab" / "notebook-extension"
        settings.mkdir(parents=True)
        (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
        notices = settings.parent / "apputils-extension"
        notices.mkdir()
        (notices / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        environment = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTER_CONFIG_DIR": str(home / "config"),
                                    "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
        lab = [BIN / "jupyter-lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={token}",
               f"--ServerApp.root_dir={root}", "--allow-root", "--LabApp.expose_app_in_browser=True"]
        stack.enter_context(process(lab, artifacts / "jupyterlab.log", env=environment))
        wait_for("JupyterLab", lambda: get(f"http://127.0.0.1:{port}/api?token={token}"))
        specs = get(f"http://127.0.0.1:{port}/api/kernelspecs?token={token}")["kernelspecs"]
        assert {"logo-32x32", "logo-64x64", "logo-svg"} <= specs["lacuna"]["resources"].keys(), specs
        chromium = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,2000",
                    f"--user-data-dir={home / 'chromium'}", f"--remote-debugging-port={debug}", "about:blank"]
        stack.enter_context(process(chromium, artifacts / "chromium.log"))
        page = Page(debug)
        page.send("Page.enable")
        # A page without the focus has no current notebook.
        page.send("Emulation.setFocusEmulationEnabled", enabled=True)
        page.send("Page.navigate", url=f"http://127.0.0.1:{port}/lab/tree/notebooks/{notebook.name}?token={token}&reset")
        step("JupyterLab is open")
        try:
            wait_for("the kernel in JupyterLab", lambda: page.value(f"['idle', 'busy'].includes({KERNEL}?.status)"), 90)
            name = page.value(f"{KERNEL}.name")
            assert name == "lacuna", f"the notebook opened with the kernel {name}"
            # As a click on its tab does: commands are for the notebook in front.
            page.value(f"window.jupyterapp.shell.activateById({PANEL}.id)")
            # Not awaited: the answer comes when all cells have run.
            page.value("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
            wait_for("run all cells", lambda: finished(page, code), STEP_SECONDS)
            found = {name: page.value(text) for name, text in [("tables", TABLES), ("plots", PLOTS), ("errors", ERRORS)]}
            prompts = [prompt.strip(" []:") for prompt in page.value(PROMPTS)]
        finally:
            page.screenshot(artifacts / "jupyterlab.png")
            page.value("document.querySelector('.jp-OutputArea-output table')?.scrollIntoView({block: 'start'})")
            time.sleep(1)
            page.screenshot(artifacts / "jupyterlab-table.png")
            page.value(f"({PLOTS.removesuffix('.length')})[0]?.scrollIntoView({{block: 'start'}})")
            time.sleep(1)
            page.screenshot(artifacts / "jupyterlab-plot.png")
        assert found["errors"] == 0, f"a cell failed in JupyterLab: see {artifacts}"
        assert found["tables"] > 0 and found["plots"] > 0, f"{found}; see {artifacts}"
        numbers = [int(prompt) for prompt in prompts if prompt]
        assert numbers == list(range(1, code + 1)), f"cells are counted {numbers}"
        step(f"JupyterLab shows {found['tables']} tables and {found['plots']} plots")


def finished(page, code):
    prompts = page.value(PROMPTS)
    return not any("*" in prompt for prompt in prompts) and (
        sum(any(c.isdigit() for c in prompt) for prompt in prompts) == code or page.value(ERRORS) > 0)


def check(executed, what):
    """Every cell has run, and there are a table, a plot, and the language that tools colour by."""
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    mimes = {mime for output in outputs for mime in output.get("data", {})}
    assert not any(output.output_type == "error" for output in outputs), f"{what}: a cell failed"
    assert "text/html" in mimes and mimes & {"image/svg+xml", "image/png"}, f"{what}: only {mimes}"
    info = executed.metadata.language_info
    assert (info.name, info.file_extension, info.pygments_lexer) == ("rust", ".rs", "rust"), info


def nbclient(notebook):
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    executed = nbformat.read(notebook, 4)
    resources = {"metadata": {"path": str(notebook.parent)}}
    NotebookClient(executed, kernel_name="lacuna", timeout=STEP_SECONDS, resources=resources).execute()
    check(executed, "nbclient")
    # evcxr calls a panic and a failed `?` successes; clients must not.
    for source, expected in [('panic!("oh {}", 1)', "oh 1"), ('Err::<(), _>("no luck")?;', "no luck"), ("let x: u8 = -1;", "E0600")]:
        failing = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        try:
            NotebookClient(failing, kernel_name="lacuna", timeout=STEP_SECONDS).execute()
        except CellExecutionError as error:
            assert expected in str(error), f"{source}: {error}"
        else:
            raise AssertionError(f"nbclient took `{source}` for a success")
    step("nbclient")


def papermill(notebook, directory):
    out = directory / "out.ipynb"
    subprocess.run([BIN / "papermill", notebook, out, "--kernel", "lacuna", "--cwd", notebook.parent, "--no-progress-bar"],
                   check=True, timeout=STEP_SECONDS)
    check(nbformat.read(out, 4), "papermill")
    step("papermill")


def console():
    """A terminal's client, which reads what is typed from a pipe."""
    typed = "let v = vec![20, 22];\nv.iter().sum::<i32>()\nexit\n"
    done = subprocess.run([BIN / "jupyter-console", "--kernel=lacuna", "--simple-prompt"], input=typed, text=True, capture_output=True, timeout=120)
    assert "42" in done.stdout, f"jupyter console: {done.stdout}\n{done.stderr}"
    step("jupyter console")


def main():
    notebook, artifacts = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    shutil.rmtree(artifacts, ignore_errors=True)
    artifacts.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as directory:
        console()
        nbclient(notebook)
        papermill(notebook, pathlib.Path(directory))
        browser(notebook, artifacts)


STARTED = time.monotonic()
main()
