"""Report of an evaluation: data, tables, plots, Markdown and HTML."""
