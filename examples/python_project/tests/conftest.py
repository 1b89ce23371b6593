pytest_plugins = ["jobserver_pytest"]
