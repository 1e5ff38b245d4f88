"""Markdown of names that come from anywhere."""

from mtslvr_hf.markdown import escape_markdown, markdown_table


def test_names_become_text_on_one_line():
    assert escape_markdown("<script>a</script>") == "&lt;script>a&lt;/script>"
    assert escape_markdown("a\r\n# b\x1b[31m\u202ec\u2028d") == "a # b [31m c d"
    assert escape_markdown("caf\udce9") == "caf\\udce9"
    assert escape_markdown("`<b>` `c` <i> `") == "&lt;b> `c` &lt;i> `"


def test_a_table_keeps_its_cells():
    lines = markdown_table(["a|b", "<c>"], [["x\n| y", 1]]).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("| a\\|b") and "&lt;c>" in lines[0] and lines[2].startswith("| x \\| y | 1")
