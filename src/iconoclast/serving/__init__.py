"""An endpoint in OpenAI's protocol for the models of a run or an export, and a page to ask them side by side."""
