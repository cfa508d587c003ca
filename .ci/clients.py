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
        nbformat.write(nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in INTERACTION],
            metadata={"kernelspec": {"name": "lacuna", "display_name": "Lacuna (Rust)", "language": "rust"}}),
            root / "notebooks" / "interaction.ipynb")
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
        address = f"http://127.0.0.1:{port}/lab/tree/notebooks/{{}}?token={token}&reset"
        try:
            open_notebook(page, address.format(notebook.name))
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
        try:
            open_notebook(page, address.format("interaction.ipynb"))
            interact(page, artifacts)
        finally:
            page.screenshot(artifacts / "jupyterlab-interaction.png")


def open_notebook(page, url):
    page.send("Page.navigate", url=url)
    wait_for("the kernel in JupyterLab", lambda: page.value(f"['idle', 'busy'].includes({KERNEL}?.status)"), 90)
    name = page.value(f"{KERNEL}.name")
    assert name == "lacuna", f"the notebook opened with the kernel {name}"
    # As a click on its tab does: commands are for the notebook in front.
    page.value(f"window.jupyterapp.shell.activateById({PANEL}.id)")
    step(f"JupyterLab has opened {url.split('?')[0].rsplit('/', 1)[1]}")


# Several values of one cell; a question; a word to look up; a cell that does not end.
INTERACTION = [
    'for i in 0..2 {\n    println!("table {i}");\n    display(&df!("a" => [i])?);\n}\ndf!("b" => [1.5])?',
    'let name = input("Your name? ")?;\nname.len()',
    "loop {\n    std::thread::sleep(std::time::Duration::from_millis(50));\n}",
    "6 * 7",
]


def interact(page, artifacts):
    command = "window.jupyterapp.commands.execute"

    def run(cell):
        page.value(f"{PANEL}.content.activeCellIndex = {cell}")
        page.value(f"void {command}('notebook:run-cell')")

    def outputs(cell):
        return page.value(f"{PANEL}.content.model.toJSON().cells[{cell}].outputs")

    def has_run(cell):
        return page.value(f"{PANEL}.content.model.toJSON().cells[{cell}].execution_count != null && {KERNEL}.status == 'idle'")

    run(0)
    wait_for("a cell of three tables", lambda: has_run(0), STEP_SECONDS)
    kinds = [output["output_type"] for output in outputs(0)]
    assert kinds == ["stream", "display_data", "stream", "display_data", "execute_result"], kinds
    tables = page.value("document.querySelector('.jp-CodeCell').querySelectorAll('.jp-OutputArea-output table').length")
    assert tables == 3, f"{tables} tables"
    step("JupyterLab shows three tables of one cell")

    run(1)
    wait_for("a question", lambda: page.value("!!document.querySelector('.jp-Stdin-input')"))
    page.value("document.querySelector('.jp-Stdin-input').focus()")
    page.send("Input.insertText", text="Ada")
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    wait_for("the cell that asks", lambda: has_run(1))
    assert outputs(1)[-1]["data"]["text/plain"] == "3", outputs(1)
    step("JupyterLab asks for a text")

    page.value(f"{PANEL}.content.activeCellIndex = 1")
    page.value(f"(() => {{ const e = {PANEL}.content.activeCell.editor; e.focus(); e.setCursorPosition({{line: 1, column: 2}}) }})()")
    page.value(f"void {command}('tooltip:launch-notebook')")
    tooltip = "document.querySelector('.jp-Tooltip-content')?.textContent ?? ''"
    wait_for("Shift+Tab inside a word", lambda: "String" in page.value(tooltip))
    page.screenshot(artifacts / "jupyterlab-inspection.png")
    page.value(f"void {command}('tooltip:dismiss')")
    step("JupyterLab shows what a variable is")

    run(2)
    wait_for("the endless cell", lambda: page.value(f"{KERNEL}.status == 'busy'"))
    time.sleep(2)
    page.value(f"void {command}('notebook:interrupt-kernel')")
    wait_for("the interrupted cell", lambda: any(output["output_type"] == "error" for output in outputs(2)))
    run(3)
    wait_for("a cell after the interrupt", lambda: has_run(3))
    assert outputs(3)[-1]["data"]["text/plain"] == "42", outputs(3)
    step("JupyterLab interrupts a cell")


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
    # Values take the types of the notebook's own cell; what does not fit is refused before anything runs.
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(SHOWN)]
    kernel = {"name": "lacuna", "display_name": "Lacuna (Rust)", "language": "rust"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), directory / "parameters.ipynb")
    run = [BIN / "papermill", "parameters.ipynb", "set.ipynb", "--no-progress-bar"]
    values = ["-p", "steps", "8", "-p", "sparsity", "1", "-p", "mark", "x", "-p", "name", 'a "b"', "-y", "levels: []"]
    subprocess.run(run + values, check=True, timeout=STEP_SECONDS, cwd=directory)
    shown = nbformat.read(directory / "set.ipynb", 4).cells[-1].outputs[-1].data["text/plain"]
    assert shown == '"8 1 x a \\"b\\" 0 true"', shown
    for name, value, expected in [("steps", "-1", "an integer, usize, and `-1` is not"), ("stepz", "1", "no parameter `stepz`")]:
        refused = subprocess.run(run + ["-p", name, value], capture_output=True, text=True, timeout=STEP_SECONDS, cwd=directory)
        assert refused.returncode != 0 and expected in refused.stderr, refused.stderr
    told = subprocess.run([BIN / "papermill", "--help-notebook", "parameters.ipynb"], capture_output=True, text=True, cwd=directory)
    assert "steps: an integer, usize" in told.stdout, told
    step("papermill")


PARAMETERS = ('let steps: usize = 4;\nlet sparsity = 0.5;\nlet mark = \',\';\nlet name = "tiny";\nlet levels = vec![0.1, 0.5];\n'
              "let fast = true;")
SHOWN = 'let half: f64 = sparsity;\nformat!("{} {half} {mark} {name} {} {fast}", steps, levels.len())'


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
