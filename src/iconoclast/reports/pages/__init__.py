"""Report pages: one self-contained HTML file about a run, an export or a comparison."""
