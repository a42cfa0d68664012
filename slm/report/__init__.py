"""Report: a run and its evaluation → one self-contained HTML page, and its Markdown twin."""
