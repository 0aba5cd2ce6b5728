"""A study's README.md shows its report, where two marks in it ask for that."""

import os
import re

from .plan import Study

BEGIN, END = "<!-- report -->", "<!-- end of report -->"
FILE = "README.md"


def show_in_readme(study: Study, report: str) -> bool:
    """Put a report between the marks of the README.md beside study.yaml.

    Its title is left out, its headings become smaller by one, its links lead into the folder of the
    runs.

    Args:
        study: whose README.md may have the marks.
        report: Markdown with links relative to study.output.

    Returns:
        Whether it has them.
    """
    path = study.folder / FILE
    text = path.read_text() if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    runs = os.path.relpath(study.output, study.folder)
    body = re.sub(r"\A# .*\n+", "", report)
    body = re.sub(r"^##", "###", body, flags=re.MULTILINE)
    body = body.replace("](", f"]({runs}/")
    path.write_text(f"{before}{BEGIN}\n\n{body.strip()}\n\n{END}{after}")
    return True
