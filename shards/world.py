def pairs(folder):
    return folder
