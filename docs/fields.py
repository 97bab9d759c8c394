"""For the website: the comment beside a field, which holds its shape, becomes the field's description."""

import re

import griffe


class FieldComments(griffe.Extension):
    """Reads `name: type  # comment`, and whole lines of comments directly above the field."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: object) -> None:
        """Called by griffe for every attribute: describe the fields of classes that have no description yet."""
        if attr.docstring or attr.lineno is None or not isinstance(attr.parent, griffe.Class):
            return
        source = attr.parent.module.filepath.read_text(encoding="utf-8").splitlines()
        parts = re.findall(r"  # (.*)", "\n".join(source[attr.lineno - 1 : attr.endlineno]))[:1]
        line = attr.lineno - 2
        while line >= 0 and source[line].strip().startswith("# "):
            parts.insert(0, source[line].strip()[2:])
            line -= 1
        if parts:
            # In Markdown a shape in brackets would be a link.
            attr.docstring = griffe.Docstring(" ".join(parts).replace("[", r"\["), parent=attr)
