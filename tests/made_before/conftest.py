"""What made the files runs with the code of then: nothing here is collected."""

collect_ignore_glob = ["*.py"]
