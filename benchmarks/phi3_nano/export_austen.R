# Writes the six novels of the janeaustenr package as text files into the current folder.
library(janeaustenr)
for (book in c("sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey", "persuasion"))
  writeLines(get(book), paste0(book, ".txt"), useBytes = TRUE)
