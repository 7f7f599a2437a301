print("not imported by anything")
