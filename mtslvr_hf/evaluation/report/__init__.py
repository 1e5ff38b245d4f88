"""What an evaluation found, as data, tables, plots, Markdown and HTML."""
