"""Who does the tasks: this process, local workers or a cluster; knows no slides."""
